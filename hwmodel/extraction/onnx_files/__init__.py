"""ONNX files as a second front end: read, fold, recognise, then record as the torch path does, for the same roles and names."""
