"""What modules of any class are recognised by, a file a form."""
