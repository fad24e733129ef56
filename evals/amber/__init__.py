"""AMBER, discriminative part: yes/no questions about objects, attributes and relations (arXiv 2311.07397)."""
