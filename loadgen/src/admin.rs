//! The server's process as its own admin address tells it, for a server whose
//! process cannot be looked at.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::probe::{self, Moment, Sample};

/// Longer than any answer takes that is worth waiting for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for `/metrics`; `None` when there is no answer with the numbers.
pub(crate) fn sample(admin: SocketAddr, moment: Moment, connections: u32) -> Option<Sample> {
    let text = metrics(admin).ok()?;
    Some(Sample {
        moment,
        connections,
        rss_bytes: value(&text, "process_resident_memory_bytes")? as u64,
        anon_bytes: None,
        cpu_ns: (value(&text, "process_cpu_seconds_total")? * 1e9) as u64,
        slab_bytes: probe::slab_bytes()?,
    })
}

fn metrics(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The value of a metric without labels.
fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_name() {
        let text = "# HELP a_b x\na_b_c 1\na_b 2.5e1\n";
        assert_eq!(value(text, "a_b"), Some(25.0));
        assert_eq!(value(text, "a"), None);
    }
}
