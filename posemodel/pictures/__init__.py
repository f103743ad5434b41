"""Pictures for people to look at. Nothing here knows of models, training or data sets."""
