"""The figures of the paper for any study: predictions, pseudo-labels and confusing regions on images chosen by a rule."""
