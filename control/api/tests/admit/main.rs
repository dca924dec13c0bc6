//! Admission by rows: what is refused, with which field and words, what is
//! filled in, what may change.
#![cfg(test)]

mod decode;
mod defaults;
mod manifest;
mod refuse;
mod update;
