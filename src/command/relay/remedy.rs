//! What the user of a command can do if the relay is not found or does not let the user ask.

use std::net::SocketAddr;

/// How to start the relay, or to ask it in its container.
const START_OR_ENTER: &str = "Start it (systemctl start aspia-relay), or see in its log why it ended. If it runs in a \
                              container, ask it there: docker exec CONTAINER /usr/local/bin/aspia_relay --status, \
                              kubectl exec POD -- /usr/local/bin/aspia_relay --status";

/// Who runs a command, as far as that decides what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandUser {
    /// root.
    Root,
    /// Another user.
    Ordinary,
    /// A user of a system without the command socket, where commands cannot see who listens on a port (Windows).
    WithoutSocket,
}

impl CommandUser {
    pub(super) fn of_process() -> Self {
        if !cfg!(target_os = "linux") {
            Self::WithoutSocket
        } else if is_root() {
            Self::Root
        } else {
            Self::Ordinary
        }
    }

    /// What to do if no relay answers, as a sentence.
    pub(super) fn if_absent(self) -> &'static str {
        match self {
            Self::Root | Self::Ordinary => START_OR_ENTER,
            Self::WithoutSocket => {
                "Start it (on Windows: net start aspia-relay), or see in its log why it ended"
            }
        }
    }

    /// What to do if the relay of another user may not be asked.
    pub(super) fn if_refused(self) -> &'static str {
        match self {
            // The relay trusts root, unless it cannot see that root asks.
            Self::Root => {
                "run this command as the user that the relay runs as (runuser -u USER -- aspia_relay OPTION)"
            }
            Self::Ordinary => {
                "run this command as root (sudo) or as the user that the relay runs as"
            }
            Self::WithoutSocket => "run this command as an administrator",
        }
    }

    /// What to do if the command socket is the only way, and the relay does not trust this user there.
    pub(super) fn if_untrusted(self) -> &'static str {
        match self {
            Self::Root => {
                "it cannot see which process asks, as before Linux 5.14 with ProtectProc=invisible in its unit: set \
                 AdminListen, or ProtectProc=default with systemctl edit, and restart it"
            }
            Self::Ordinary | Self::WithoutSocket => self.if_refused(),
        }
    }

    /// What to do if it is not visible who listens on `address`, which therefore is not sent the token.
    pub(super) fn if_unseen(self, address: SocketAddr) -> String {
        match self {
            Self::Root | Self::Ordinary => {
                "start the relay if it does not run, or run this command where it runs (docker exec CONTAINER \
                 /usr/local/bin/aspia_relay, kubectl exec POD -- /usr/local/bin/aspia_relay)"
                    .to_owned()
            }
            Self::WithoutSocket => use_page(address),
        }
    }

    /// What to do if the relay on `address` wants a token that the command does not have.
    pub(super) fn if_without_token(self, address: SocketAddr) -> String {
        match self {
            Self::Root | Self::Ordinary => {
                format!("{}, or with the same configuration", self.if_refused())
            }
            // With the token, it would not be visible who gets it.
            Self::WithoutSocket => use_page(address),
        }
    }
}

/// The page asks for the token, and its user knows whose page it is.
fn use_page(address: SocketAddr) -> String {
    format!("use the page of the relay in a browser, http://{address}/")
}

#[cfg(unix)]
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [CommandUser; 3] =
        [CommandUser::Root, CommandUser::Ordinary, CommandUser::WithoutSocket];

    fn all_texts(user: CommandUser) -> Vec<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], 8071));
        vec![
            user.if_absent().to_owned(),
            user.if_refused().to_owned(),
            user.if_untrusted().to_owned(),
            user.if_unseen(address),
            user.if_without_token(address),
        ]
    }

    #[test]
    fn only_an_ordinary_user_is_told_to_become_root() {
        for user in ALL {
            let has_advice = all_texts(user).iter().any(|text| text.contains("as root"));
            assert_eq!(has_advice, user == CommandUser::Ordinary, "{user:?}");
        }
    }

    #[test]
    fn nobody_without_the_command_socket_is_told_what_only_linux_has() {
        for text in all_texts(CommandUser::WithoutSocket) {
            for tool in ["systemctl", "sudo", "runuser", "docker", "kubectl", "ProtectProc"] {
                assert!(!text.contains(tool), "{text}");
            }
        }
        let unseen = &all_texts(CommandUser::WithoutSocket)[3];
        assert!(unseen.contains("http://127.0.0.1:8071/"), "{unseen}");
    }

    #[test]
    fn a_relay_that_is_not_visible_is_asked_where_it_runs() {
        for user in [CommandUser::Root, CommandUser::Ordinary] {
            let unseen = &all_texts(user)[3];
            assert!(unseen.contains("where it runs (docker exec"), "{unseen}");
        }
    }
}
