//! The model file from outside: golden bytes, damage, every reason to refuse a file, packing.

mod causes;
mod damage;
mod golden;
mod invariants;
mod packing;
mod tiny;
