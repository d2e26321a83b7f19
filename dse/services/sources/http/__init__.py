"""`Http`: tables filled from JSON over HTTP. `source` has options and reading, `fetch` one request and its limits."""

from dse.services.sources.http.source import Http, HttpColumn, HttpError, HttpTable

__all__ = ["Http", "HttpColumn", "HttpError", "HttpTable"]
