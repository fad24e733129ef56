"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vlmfix_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "vlmfix_request_seconds",
            "From the first byte of a request for answers to the last of these.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_seconds = Histogram(
            "vlmfix_first_token_seconds",
            "From the first byte of a request to the first text of a stream.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.open_requests = Gauge(
            "vlmfix_open_requests", "Requests for answers in the server.", registry=self.registry
        )
        self.waiting = Gauge(
            "vlmfix_waiting_answers", "Answers that wait for the model.", registry=self.registry
        )
        self.batch_size = Histogram(
            "vlmfix_batch_size", "Answers that were decoded together.", buckets=_SIZES, registry=self.registry
        )
        self.prompt_tokens = Counter(
            "vlmfix_prompt_tokens", "Tokens of prompts that were answered.", registry=self.registry
        )
        self.completion_tokens = Counter(
            "vlmfix_completion_tokens", "Tokens of answers.", registry=self.registry
        )
        self.disconnects = Counter(
            "vlmfix_disconnects", "Clients that left before their answer.", registry=self.registry
        )

    def text(self) -> bytes:
        """All of it in the format of Prometheus."""
        return generate_latest(self.registry)
