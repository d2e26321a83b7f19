"""DSE: data services that share one message bus."""
