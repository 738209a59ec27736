//! The examples stand beside this file, one program each: `own_store.rs`.
