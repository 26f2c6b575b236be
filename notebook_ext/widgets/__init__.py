"""What is drawn with ipywidgets; imported only where widgets can be shown."""
