"""What an evaluation is, under which accounting, and where its figures come from."""
