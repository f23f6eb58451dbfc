"""Evaluation: inference over a data set, and COCO's scores of the results."""
