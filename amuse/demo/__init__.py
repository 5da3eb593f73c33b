"""`amuse demo`: a local page that plays a recording, shows who showed which emotion when, and says why."""
