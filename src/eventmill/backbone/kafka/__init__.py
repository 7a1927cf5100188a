"""The Kafka backbone."""
