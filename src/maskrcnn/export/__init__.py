"""Models as files for other runtimes: one graph, pictures in, detections with masks out."""
