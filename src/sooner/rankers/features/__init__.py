"""What is read of a prompt and its context: hashed words, plain numbers, topics, the past, a reply's form."""
