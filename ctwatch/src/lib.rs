//! ctwatch: what connection tracking does to a Linux machine, counted in the kernel.

pub mod cli;
pub mod commands;
pub mod doctor;
pub mod kernel;
pub mod model;
pub mod privileges;
pub mod record;
pub mod source;
pub mod view;
