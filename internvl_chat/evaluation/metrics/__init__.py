"""Pure scorers: values in, numbers and the texts that the originals print out."""
