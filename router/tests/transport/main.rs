//! The transport as its clients see it: raw sockets and real HTTP clients against a server with a
//! small API of the tests' own.

mod checks;
mod child;
mod drain;
mod events;
mod flood;
mod http1;
mod http2;
mod idle;
mod limits;
mod load;
mod support;
mod tls;
