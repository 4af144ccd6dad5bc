"""The example of docs/custom_dataset.md: which bin does an object go to?"""
