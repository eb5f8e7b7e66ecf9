//! What the service may do, and who may do what with its directories and files.
//!
//! Its directories are where ordinary users may make some, too (`C:\ProgramData`, `C:\Windows\Temp`). So one that is
//! there already is only taken where an administrator or the system owns it, and never a link to somewhere else: a
//! user could have made it to be given, by an administrator who installs the service, what is behind it.
#![allow(
    unsafe_code,
    reason = "no kept library sets permissions, or limits privileges, on Windows"
)]

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::{MetadataExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use std::ptr;

use windows_service::service::Service;
use windows_sys::Win32::Foundation::{ERROR_ALREADY_EXISTS, ERROR_SUCCESS, HANDLE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, ConvertStringSidToSidW,
    EXPLICIT_ACCESS_W, GRANT_ACCESS, GetSecurityInfo, NO_MULTIPLE_TRUSTEE, SDDL_REVISION_1,
    SE_FILE_OBJECT, SetEntriesInAclW, SetSecurityInfo, TRUSTEE_IS_SID, TRUSTEE_IS_UNKNOWN,
    TRUSTEE_W,
};
use windows_sys::Win32::Security::{
    ACL, DACL_SECURITY_INFORMATION, EqualSid, GetTokenInformation, INHERIT_ONLY_ACE,
    IsWellKnownSid, NO_INHERITANCE, OBJECT_INHERIT_ACE, OWNER_SECURITY_INFORMATION, PSID,
    SECURITY_ATTRIBUTES, TOKEN_USER, TokenUser, WinBuiltinAdministratorsSid, WinLocalSystemSid,
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateDirectoryW, DELETE, FILE_ADD_FILE, FILE_ATTRIBUTE_REPARSE_POINT,
    FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, FILE_GENERIC_EXECUTE,
    FILE_GENERIC_READ, FILE_GENERIC_WRITE, FILE_READ_ATTRIBUTES, READ_CONTROL, WRITE_DAC,
};
use windows_sys::Win32::System::Services::{
    ChangeServiceConfig2W, SERVICE_CONFIG_REQUIRED_PRIVILEGES_INFO,
    SERVICE_REQUIRED_PRIVILEGES_INFOW,
};

/// The number of the service's account. Windows computes it from the name of the service: the SHA-1 of the name in
/// capitals.
const SERVICE: &str = "S-1-5-80-620634200-3938320152-2731559384-36916927-1525748724";

/// The one privilege that it keeps: to open what is in a directory that it may not list, as everybody may.
const PRIVILEGE: &str = "SeChangeNotifyPrivilege";

/// Whoever makes something in a directory, in what is inherited there.
const CREATOR: &str = "S-1-3-0";

const READ: u32 = FILE_GENERIC_READ | FILE_GENERIC_EXECUTE;
const MODIFY: u32 = READ | FILE_GENERIC_WRITE | DELETE;

/// What somebody may do with a directory or a file.
#[derive(Debug, Clone, Copy)]
struct Grant {
    /// A number of an account.
    to: &'static str,
    rights: u32,
    /// Whether it is about the files in a directory, not about the directory.
    of_files: bool,
}

/// What is in the directory of the configuration is of other Aspia programs as well, with secrets of theirs.
const CONFIGURATION_DIRECTORY: &[Grant] = &[Grant { to: SERVICE, rights: READ, of_files: false }];
const CONFIGURATION: &[Grant] = &[Grant { to: SERVICE, rights: READ, of_files: false }];
/// Log files of other Aspia programs may be there, too: the service makes files, and whoever made one may do with it what
/// it wants.
const LOG_DIRECTORY: &[Grant] = &[
    Grant { to: SERVICE, rights: READ | FILE_ADD_FILE, of_files: false },
    Grant { to: CREATOR, rights: MODIFY, of_files: true },
];

/// Sees to it that the service can write log files in a directory. Where it is missing it is made, and nobody but the
/// system, administrators and the service has any rights there; where it exists, the service's are added.
///
/// # Errors
/// What the system says, or that the directory is not to be trusted, in words.
pub(super) fn log_directory(path: &Path) -> io::Result<()> {
    match create(path, &descriptor(LOG_DIRECTORY)) {
        Err(error) if error.raw_os_error() == Some(ERROR_ALREADY_EXISTS.cast_signed()) => {
            let open = open(path)?;
            if !open.metadata()?.is_dir() {
                return Err(io::Error::other("it is no directory; remove or rename it"));
            }
            add(&open, LOG_DIRECTORY)
        }
        made => made,
    }
}

/// Makes a directory for the configuration, in which nobody but the system and administrators may do anything, and the
/// service see what there is.
///
/// # Errors
/// What the system says.
pub(super) fn make_configuration_directory(path: &Path) -> io::Result<()> {
    create(path, &descriptor(CONFIGURATION_DIRECTORY))
}

/// The security descriptor of a new directory, in Windows' notation: owned by the administrators, nothing inherited from
/// above, and everything inherited by what is in it: full rights for the system and the administrators.
fn descriptor(grants: &[Grant]) -> String {
    let grants = grants.iter().map(|Grant { to, rights, of_files }| {
        let inheritance = if *of_files { "OIIO" } else { "" };
        format!("(A;{inheritance};{rights:#x};;;{to})")
    });
    grants.fold("O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)".to_owned(), |all, grant| all + &grant)
}

/// Sees to it that a directory that is there is an administrator's, and itself, not a link; gives nobody any rights.
///
/// # Errors
/// What the system says, or that the directory is not to be trusted, in words.
pub(super) fn check_directory(path: &Path) -> io::Result<()> {
    Security::of(&open(path)?)?.check_owner()
}

/// Lets the service read a file, where there is one.
///
/// # Errors
/// What the system says, or that the file is not to be trusted, in words.
pub(super) fn file(path: &Path) -> io::Result<()> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(open) => add(&open, CONFIGURATION),
    }
}

/// Takes all privileges of the account from the service but the one that it needs.
///
/// # Errors
/// What the system says.
pub(super) fn limit_privileges(service: &Service) -> io::Result<()> {
    // A list of texts that each end with a zero, and one zero more.
    let mut list: Vec<u16> = PRIVILEGE.encode_utf16().chain([0, 0]).collect();
    let info = SERVICE_REQUIRED_PRIVILEGES_INFOW { pmszRequiredPrivileges: list.as_mut_ptr() };
    // SAFETY: the handle is open as long as `service` is there; `info` and its list, which ends with two zeros, outlive
    // the call and are the structure that goes with this level.
    let changed = unsafe {
        ChangeServiceConfig2W(
            service.raw_handle(),
            SERVICE_CONFIG_REQUIRED_PRIVILEGES_INFO,
            (&raw const info).cast(),
        )
    };
    if changed == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens a directory or a file itself, to see and change its permissions; never what a link leads to.
fn open(path: &Path) -> io::Result<File> {
    let open = OpenOptions::new()
        .access_mode(READ_CONTROL | WRITE_DAC | FILE_READ_ATTRIBUTES)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path)?;
    if open.metadata()?.file_attributes() & FILE_ATTRIBUTE_REPARSE_POINT != 0 {
        return Err(io::Error::other("it is a link to somewhere else; remove it"));
    }
    Ok(open)
}

/// Something that the system made and wants to have back.
struct LocalAllocation(*mut c_void);

impl Drop for LocalAllocation {
    fn drop(&mut self) {
        // SAFETY: the system said of it that it is to be given back this way; nobody else has it.
        unsafe { LocalFree(self.0) };
    }
}

fn check(code: u32) -> io::Result<()> {
    match code {
        ERROR_SUCCESS => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.cast_signed())),
    }
}

/// Makes a directory with a security descriptor in Windows' notation.
fn create(path: &Path, descriptor: &str) -> io::Result<()> {
    let path: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let descriptor: Vec<u16> = descriptor.encode_utf16().chain([0]).collect();
    let mut made = ptr::null_mut();
    // SAFETY: the text ends with a zero; `made` is written where the result is not 0; the length is not asked for.
    let parsed = unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            descriptor.as_ptr(),
            SDDL_REVISION_1,
            &raw mut made,
            ptr::null_mut(),
        )
    };
    if parsed == 0 {
        return Err(io::Error::last_os_error());
    }
    let made = LocalAllocation(made);
    let attributes = SECURITY_ATTRIBUTES {
        #[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        lpSecurityDescriptor: made.0,
        bInheritHandle: 0,
    };
    // SAFETY: the path ends with a zero; the descriptor is a good one, and both outlive the call.
    let created = unsafe { CreateDirectoryW(path.as_ptr(), &raw const attributes) };
    if created == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whose something is, and who may do what with it.
struct Security {
    owner: PSID,
    list: *mut ACL,
    /// What the other two lie in.
    _descriptor: LocalAllocation,
}

impl Security {
    fn of(open: &File) -> io::Result<Self> {
        let (mut owner, mut list): (PSID, *mut ACL) = (ptr::null_mut(), ptr::null_mut());
        let mut descriptor = ptr::null_mut();
        // SAFETY: the handle is open; the places are writable. `owner` and `list` lie in `descriptor`.
        check(unsafe {
            GetSecurityInfo(
                open.as_raw_handle(),
                SE_FILE_OBJECT,
                OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION,
                &raw mut owner,
                ptr::null_mut(),
                &raw mut list,
                ptr::null_mut(),
                &raw mut descriptor,
            )
        })?;
        Ok(Self { owner, list, _descriptor: LocalAllocation(descriptor) })
    }

    /// Whether it is an administrator's.
    fn check_owner(&self) -> io::Result<()> {
        if is_trusted(self.owner, &*user()?)? {
            return Ok(());
        }
        Err(io::Error::other(
            "it belongs to somebody who may be no administrator; look at what is in it, then give it to the \
             administrators (takeown /a /f PATH), or remove it",
        ))
    }
}

/// Whether what belongs to `owner`, a good account, may be taken for an administrator's, where an administrator is at work
/// as `user`.
fn is_trusted(owner: PSID, user: &User) -> io::Result<bool> {
    let service = account(SERVICE)?;
    // SAFETY: all three are good as long as this runs.
    Ok(unsafe {
        IsWellKnownSid(owner, WinBuiltinAdministratorsSid) != 0
            || IsWellKnownSid(owner, WinLocalSystemSid) != 0
            || EqualSid(owner, user.sid()) != 0
            // The service makes its directory for log files itself when somebody has removed it.
            || EqualSid(owner, service.0) != 0
    })
}

/// Adds rights to those that are there.
fn add(open: &File, grants: &[Grant]) -> io::Result<()> {
    let security = Security::of(open)?;
    security.check_owner()?;
    let accounts: Vec<LocalAllocation> =
        grants.iter().map(|grant| account(grant.to)).collect::<io::Result<_>>()?;
    let entries: Vec<EXPLICIT_ACCESS_W> = grants
        .iter()
        .zip(&accounts)
        .map(|(grant, account)| EXPLICIT_ACCESS_W {
            grfAccessPermissions: grant.rights,
            grfAccessMode: GRANT_ACCESS,
            grfInheritance: match grant.of_files {
                true => OBJECT_INHERIT_ACE | INHERIT_ONLY_ACE,
                false => NO_INHERITANCE,
            },
            Trustee: TRUSTEE_W {
                pMultipleTrustee: ptr::null_mut(),
                MultipleTrusteeOperation: NO_MULTIPLE_TRUSTEE,
                TrusteeForm: TRUSTEE_IS_SID,
                TrusteeType: TRUSTEE_IS_UNKNOWN,
                ptstrName: account.0.cast(),
            },
        })
        .collect();
    #[expect(clippy::cast_possible_truncation, reason = "one or two")]
    let count = entries.len() as u32;
    let mut new = ptr::null_mut();
    // SAFETY: as many entries are passed as are said, and `accounts` outlives the call; the list is good as long as
    // `security` is there.
    check(unsafe { SetEntriesInAclW(count, entries.as_ptr(), security.list, &raw mut new) })?;
    let new = LocalAllocation(new.cast());
    // SAFETY: the handle is open, `new` a good list; the rest is not to be changed.
    check(unsafe {
        SetSecurityInfo(
            open.as_raw_handle(),
            SE_FILE_OBJECT,
            DACL_SECURITY_INFORMATION,
            ptr::null_mut(),
            ptr::null_mut(),
            new.0.cast(),
            ptr::null(),
        )
    })
}

/// What Windows takes for the token of the process itself (`GetCurrentProcessToken` of its headers).
const THIS_PROCESS: HANDLE = -4_isize as HANDLE;
/// The size of [`User`], in bytes.
const USER_SIZE: u32 = 128;

/// Who this process runs as: a `TOKEN_USER`, and behind it what that points to, 68 bytes at most.
struct User([u64; 16]);

impl User {
    /// The account in the system's own form; good as long as this is there.
    fn sid(&self) -> PSID {
        // SAFETY: the system has written such a structure here, and its alignment is not larger.
        unsafe { (*self.0.as_ptr().cast::<TOKEN_USER>()).User.Sid }
    }
}

fn user() -> io::Result<Box<User>> {
    // In its place before the system writes into it: the structure points into itself.
    let mut user = Box::new(User([0; 16]));
    let mut length = 0;
    // SAFETY: the place is writable for as many bytes as are said, and so is `length`.
    let told = unsafe {
        GetTokenInformation(
            THIS_PROCESS,
            TokenUser,
            user.0.as_mut_ptr().cast(),
            USER_SIZE,
            &raw mut length,
        )
    };
    if told == 0 { Err(io::Error::last_os_error()) } else { Ok(user) }
}

/// An account in the system's own form.
fn account(number: &str) -> io::Result<LocalAllocation> {
    let text: Vec<u16> = number.encode_utf16().chain([0]).collect();
    let mut sid = ptr::null_mut();
    // SAFETY: the text ends with a zero; `sid` is written where the result is not 0.
    let parsed = unsafe { ConvertStringSidToSidW(text.as_ptr(), &raw mut sid) };
    if parsed == 0 { Err(io::Error::last_os_error()) } else { Ok(LocalAllocation(sid)) }
}

#[cfg(test)]
mod tests {
    use super::super::NAME;
    use super::*;
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

    #[test]
    fn the_account_is_that_of_the_service() {
        let name: Vec<u8> = NAME.to_uppercase().encode_utf16().flat_map(u16::to_le_bytes).collect();
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &name);
        let parts = hash.as_ref().chunks(4).map(|four| {
            let four: [u8; 4] = four.try_into().unwrap();
            format!("-{}", u32::from_le_bytes(four))
        });
        assert_eq!(SERVICE, format!("S-1-5-80{}", parts.collect::<String>()));
        assert!(account(SERVICE).is_ok());
        assert_eq!(size_of::<User>(), USER_SIZE as usize);
        assert!(!user().unwrap().sid().is_null());
    }

    #[test]
    fn administrators_the_system_and_the_service_are_trusted_and_nobody_else() {
        let user = user().unwrap();
        let trusted = |number: &str| is_trusted(account(number).unwrap().0, &user).unwrap();
        for administrator in ["S-1-5-32-544", "S-1-5-18", SERVICE] {
            assert!(trusted(administrator), "{administrator}");
        }
        assert!(is_trusted(user.sid(), &user).unwrap());
        // Users, everybody, another service, one of many users.
        for other in ["S-1-5-32-545", "S-1-1-0", "S-1-5-19", "S-1-5-21-1-2-3-1234"] {
            assert!(!trusted(other), "{other}");
        }
    }

    #[test]
    fn the_service_gets_nothing_of_what_others_keep_beside_its_files() {
        for grant in [LOG_DIRECTORY, CONFIGURATION_DIRECTORY].concat() {
            if grant.to == SERVICE {
                assert!(!grant.of_files && grant.rights & DELETE == 0, "{grant:?}");
            } else {
                assert!(grant.to == CREATOR && grant.of_files, "{grant:?}");
            }
        }
    }

    #[test]
    fn a_directory_is_made_and_taken_again() {
        let outside = tempfile::tempdir().unwrap();
        let logs = outside.path().join("logs");
        for _ in 0..2 {
            log_directory(&logs).unwrap();
            assert!(logs.is_dir());
        }
        let path = outside.path().join("aspia");
        make_configuration_directory(&path).unwrap();
        check_directory(&path).unwrap();
        std::fs::write(path.join("relay.json"), "{}").unwrap();
        file(&path.join("relay.json")).unwrap();
        file(&path.join("nothing.json")).unwrap();
    }

    #[test]
    fn a_file_is_no_directory() {
        let outside = tempfile::tempdir().unwrap();
        let path = outside.path().join("aspia");
        std::fs::write(&path, "").unwrap();
        let error = log_directory(&path).unwrap_err().to_string();
        assert!(error.contains("no directory"), "{error}");
    }
}
