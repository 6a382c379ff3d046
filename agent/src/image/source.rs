//! Service `qubes.GetImageRGBA`, the side that has the picture.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Resource, Rlimit};

use crate::desktop::find;
use crate::flow::{self, Line, Trouble};
use crate::image::converter::{self, Converter, Written};
use crate::image::format::{Format, TELLING};
use crate::image::netpbm::{self, Layout};
use crate::image::png;
use crate::image::request::{self, Request};
use crate::image::size::Size;
use crate::open::folder::Folder;
use crate::open::name::harmless;
use crate::program::{self, Streams};
use crate::sys::call;
use crate::{code, environment, say};

/// Larger files are no pictures that we convert.
const LARGEST: u64 = 256 << 20;
/// A converter has so many seconds of a processor, and so much address space.
const MOST_SECONDS: u64 = 60;
const MOST_MEMORY: u64 = 4 << 30;

type Attempt<T> = Result<T, &'static str>;

/// Run the service; its exit code.
pub fn run(environment: &[&CStr]) -> i32 {
    call::ignore_broken_pipes();
    match serve(environment) {
        Ok(()) => 0,
        Err(text) => {
            say!("error: {text}");
            code::FAILURE
        }
    }
}

fn serve(environment: &[&CStr]) -> Attempt<()> {
    let request = match flow::read_line(call::standard(0), request::LONGEST) {
        Ok(Line::Whole(line)) => Request::parse(&line),
        _ => None,
    };
    let request = request.ok_or("expected a line with a path, `xdgicon:NAME`, `-` or `FORMAT:-`")?;
    let source = environment::get(environment, b"QREXEC_REMOTE_DOMAIN").unwrap_or(b"unknown");
    let folder =
        Folder::fresh(b"/tmp", &harmless(source)).map_err(|_| "cannot make a directory below `/tmp`")?;
    let done = take(&request, &folder, environment)
        .and_then(|(file, format)| convert(&file, format, &folder.path_of(NAME), environment));
    let removed = folder.remove().map_err(|_| "the directory of the picture could not be removed");
    done.and(removed)
}

/// The picture's name in its directory.
const NAME: &[u8] = b"image";

/// Copy the picture into the directory, so that it is a regular file that nobody else changes.
fn take(request: &Request, folder: &Folder, environment: &[&CStr]) -> Attempt<(OwnedFd, Format)> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder.fd, NAME, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|_| "cannot store the picture")?;
    let copied = match request {
        Request::Stream(_) => flow::copy(call::standard(0), &file, LARGEST),
        Request::File(path) => flow::copy(open(path).ok_or("there is no such file to read")?, &file, LARGEST),
        Request::Icon(name) => {
            flow::copy(icon(name, environment).ok_or("there is no such icon")?, &file, LARGEST)
        }
    };
    copied.map_err(|trouble| match trouble {
        Trouble::TooMuch => "the picture is larger than 256 MiB",
        Trouble::Reading(_) => "cannot read the picture",
        Trouble::Writing(_) => "cannot store the picture",
    })?;
    let format = match request {
        Request::Stream(Some(format)) => *format,
        _ => {
            let mut head = [0; TELLING];
            rewind(&file)?;
            let length = flow::read_full(&file, &mut head).map_err(|_| "cannot read the picture")?;
            Format::of_content(&head[..length]).ok_or("this is no picture of a known kind")?
        }
    };
    rewind(&file)?;
    Ok((file, format))
}

fn rewind(file: &OwnedFd) -> Attempt<()> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0)).map(|_| ()).map_err(|_| "cannot read the picture")
}

/// Open a regular file; nothing else is a picture, and a pipe would make us wait.
fn open(path: &[u8]) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode);
    (kind == FileType::RegularFile).then_some(file)
}

fn icon(name: &[u8], environment: &[&CStr]) -> Option<OwnedFd> {
    request::icon_paths(&find::data_directories(environment), name).iter().find_map(|path| open(path))
}

fn convert(file: &OwnedFd, format: Format, path: &[u8], environment: &[&CStr]) -> Attempt<()> {
    if format == Format::Netpbm {
        return send_netpbm(file);
    }
    if format == Format::Png {
        // Icons and screenshots need no converter.
        if let Some((size, pixels)) = png::read(&content(file)?) {
            return send(size, pixels.chunks_exact(size.row()).map(Ok));
        }
    }
    let converter = converter::find(format, path, environment)
        .ok_or("no converter for this kind of picture is installed (ImageMagick, GraphicsMagick, netpbm, or librsvg for SVG)")?;
    run_converter(&converter, environment)
}

fn content(file: &OwnedFd) -> Attempt<Vec<u8>> {
    let content = flow::read_to_end(file, LARGEST as usize).map_err(|_| "cannot read the picture")?;
    rewind(file)?;
    Ok(content)
}

fn run_converter(converter: &Converter, environment: &[&CStr]) -> Attempt<()> {
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|_| "cannot start the converter")?;
    limit();
    let command: Vec<&CStr> = converter.command.iter().map(CString::as_c_str).collect();
    let streams = Streams { stdout: Some(&writer), ..Streams::default() };
    let pid = program::start(&command, &streams, environment).map_err(|_| "cannot start the converter")?;
    drop(writer);
    let sent = match converter.written {
        Written::Netpbm => send_netpbm(&reader),
        Written::Png => flow::read_to_end(&reader, LARGEST as usize)
            .ok()
            .and_then(|file| png::read(&file))
            .ok_or("the converter could not read the picture, or it is too large")
            .and_then(|(size, pixels)| send(size, pixels.chunks_exact(size.row()).map(Ok))),
    };
    drop(reader);
    let ended = program::code_of(pid) == 0;
    // What we found first: a converter that we do not read to its end fails too.
    sent.and(if ended { Ok(()) } else { Err("the converter failed within the picture") })
}

/// A hostile picture keeps no converter busy for good, also one that knows no bounds of its own.
fn limit() {
    for (resource, most) in [(Resource::Cpu, MOST_SECONDS), (Resource::As, MOST_MEMORY), (Resource::Core, 0)]
    {
        let hard = rustix::process::getrlimit(resource).maximum;
        let limit = Some(hard.map_or(most, |hard| hard.min(most)));
        // To lower what is ours already is never refused.
        let _ = rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit });
    }
}

fn send_netpbm(from: &OwnedFd) -> Attempt<()> {
    let Layout { size, depth } =
        netpbm::read(from).ok_or("the picture cannot be read, or it is too large")?;
    let mut raw = alloc::vec![0; size.width as usize * depth];
    let mut row = Vec::with_capacity(size.row());
    send(
        size,
        (0..size.height).map(|_| match flow::read_full(from, &mut raw) {
            Ok(count) if count == raw.len() => {
                netpbm::to_rgba(&raw, depth, &mut row);
                Ok(core::mem::take(&mut row))
            }
            _ => Err("the picture ends too early"),
        }),
    )
}

/// Send the header and the rows.
fn send<R: AsRef<[u8]>>(size: Size, rows: impl Iterator<Item = Attempt<R>>) -> Attempt<()> {
    const GONE: &str = "the caller does not read on";
    flow::write_all(call::standard(1), size.header().as_bytes()).map_err(|_| GONE)?;
    for row in rows {
        flow::write_all(call::standard(1), row?.as_ref()).map_err(|_| GONE)?;
    }
    Ok(())
}
