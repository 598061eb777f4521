"""The model, its loss and its optimizer: tensors in, tensors out."""
