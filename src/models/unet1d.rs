//! 1-D U-Net.
