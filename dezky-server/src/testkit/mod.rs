//! For tests: keys that sign tokens, tokens with any defect, and the properties of fuzz targets.

pub mod properties;
mod signing;
mod token;

pub use self::signing::SigningKey;
pub use self::token::TokenBuilder;
