"""The HTTP API: ``aggregator serve``, with the packages of extra ``web``."""
