"""From the text of a kernel to tile IR: reading the source, evaluating what is static, typing the rest."""
