"""A folder of one's own photographs and labels -> COCO files -> a config."""
