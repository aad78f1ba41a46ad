"""Models for other runtimes: to ONNX, to int8, and run from there. Needs the packages of potstill[export]."""
