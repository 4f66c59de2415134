"""The stores. Each adapter translates foreign errors once and returns core types."""
