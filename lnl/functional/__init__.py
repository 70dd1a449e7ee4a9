"""Pure functions of tensors: losses, targets, selection, noise, augmentation."""
