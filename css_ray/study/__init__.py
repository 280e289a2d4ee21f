"""What is asked and what is next: study files, the journal, sampling, pruning, the driver. Knows no Ray."""
