"""Read and write Hugging Face model directories as data: headers, layers, configs. No torch."""
