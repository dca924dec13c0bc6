//! The server as its clients see it: real mutual TLS on loopback, the embedded
//! store in a temporary folder, agents that speak the protocol and run nothing.
#![cfg(test)]

mod advertise;
mod behind;
mod join;
mod nodes;
mod notify;
mod objects;
mod owners;
mod unreadable;
mod writes;

use tests_control as harness;
