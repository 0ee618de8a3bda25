"""Make new model directories out of the tensors of others: cut, grow, stack, halve."""
