"""What a workflow's author imports. Standard library and Python 3.9 syntax only: it is shipped inside jobs."""
