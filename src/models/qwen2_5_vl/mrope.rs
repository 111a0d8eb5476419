//! mrope
