"""An OpenAI-compatible server of one model and all methods; needs `pip install 'vlmfix[serve]'`."""
