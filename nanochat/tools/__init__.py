"""What a model may call: small functions from text to text that are safe on anything a model writes."""
