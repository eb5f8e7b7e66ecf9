//! Another user's program that answers like a relay on its instance socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

/// Binds the abstract name `socket` as `user`, and answers until the program ends. `answers` are paths and bodies.
///
/// # Errors
/// If the user is not root.
pub fn publish(
    socket: &str,
    user: u32,
    answers: &'static [(&'static str, &'static str)],
) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(socket)?;
    let bind = move || {
        let user = Uid::from_raw(user);
        // Of this thread alone.
        set_thread_res_uid(user, user, user)?;
        UnixListener::bind_addr(&address)
    };
    let bound = std::thread::spawn(bind).join();
    let listener = bound.map_err(|_| io::Error::other("the thread panicked"))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that only checks the owner sends no request.
            let _ = answer(stream, answers);
        }
    });
    Ok(())
}

fn answer(mut stream: impl io::Read + Write, answers: &[(&str, &str)]) -> io::Result<()> {
    let mut lines = BufReader::new(&mut stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let body = answers.iter().find(|(known, _)| *known == path).map_or("{}", |(_, body)| *body);
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
}
