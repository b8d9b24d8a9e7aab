"""Sources: the images of a job, from folders, lists, archives and tables."""
