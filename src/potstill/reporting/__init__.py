"""Reports, plots, tables, model cards and loggers."""
