"""`tilting evaluate`: numbers of pictures that are there, from folders of any origin."""
