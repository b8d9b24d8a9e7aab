"""Sources: the pictures of a job, from folders, lists, archives and tables."""
