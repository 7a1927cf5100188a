"""Real Apache Kafka for tests, benchmarks and a developer's own trials: see broker.py."""
