"""The composition root: the command line and the demo. The only place that knows every room."""
