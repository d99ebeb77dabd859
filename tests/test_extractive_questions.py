"""Development questions over the standard library's documentation, and the rates that quoting.py was set on.

The figures that count are held elsewhere, on questions that were written blind. These keep a change from trading
one rate for the other without noticing.
"""

from __future__ import annotations

import importlib
import inspect

import pytest

from aiosd.models.quoting import best
from aiosd.records import Source

QUESTIONS = """
textwrap.wrap
  What does textwrap.wrap return? => a list of wrapped lines
  What happens to tabs by default? => are expanded with string.expandtabs()
  Which class lists the available keyword args? => See TextWrapper class
  What exception does wrap raise if the width is zero?
  How does wrap handle right-to-left text?
textwrap.shorten
  What is appended when the text does not fit? => the placeholder is appended
  What happens if the text already fits in the width? => it is returned as is
  What is the maximum width that shorten accepts?
textwrap.dedent
  How does dedent treat blank lines? => blank lines are normalized
  Are tabs and spaces considered equal? => are not equal
  How many spaces does dedent replace a tab with?
textwrap.indent
  Which lines get the prefix when no predicate is given? => default to adding 'prefix' to all non-empty lines
  Can indent remove a prefix from lines?
textwrap.TextWrapper
  What is the default width? => width (default: 70)
  How many spaces follow sentence-ending punctuation with fix_sentence_endings? => followed by two spaces
  Which method do I override to completely replace the wrapping algorithm? => _wrap_chunks()
  What does max_lines do? => Truncate wrapped lines
  What is the default encoding?
  Which option centers the lines?
  What happens to long words if break_long_words is false? => those words will not be broken
  Which two methods make up the public interface? => consists of the wrap() and fill() methods
  Why is fix_sentence_endings off by default? => (unavoidably) imperfect
  What is the default placeholder? => placeholder (default: ' [...]')
  Does initial_indent count towards the width? => Counts towards the line's width
  Which hyphenation dictionary is used?
  How does TextWrapper handle HTML tags?
shutil.copyfile
  What is created if follow_symlinks is not set and the source is a symlink? => a new symlink will be created
  What buffer size does copyfile use?
shutil.copytree
  What is raised when the destination already exists and dirs_exist_ok is false? => `FileExistsError` is raised
  Which function is used by default to copy each file? => By default, copy2() is used
  How can I silence the exception about dangling symlinks? => ignore_dangling_symlinks flag to true
  What does copytree return? => return the destination directory
  What should the ignore callable return? => a list of names relative to the `src` directory
  How many threads does copytree use?
  Does copytree compress the files?
shutil.rmtree
  What happens if ignore_errors is set? => errors are ignored
  What should dir_fd be? => it should be a file descriptor open to a directory
  Can deleted files be restored from the trash?
shutil.move
  What is used if the destination is on the current filesystem? => then rename() is used
  What Unix command is move similar to? => Unix "mv" command
  What happens if the destination is a directory? => the source is moved inside the directory
  Is move atomic across filesystems?
shutil.which
  What is the default mode? => os.F_OK | os.X_OK
  What does which return if there is no such file? => or None if there is no such file
  Does which cache its results?
shutil.make_archive
  What archive formats are supported? => "bztar", or "xztar"
  When are owner and group used? => are used when creating a tar archive
  What is the default of root_dir? => both default to the current directory
  What compression level is used for zip?
shutil.get_terminal_size
  What is the default fallback size? => Fallback defaults to (80, 24)
  Which environment variables are checked? => COLUMNS and LINES respectively
  How do I change the terminal font?
json.dumps
  What happens if allow_nan is false? => it will be a ``ValueError``
  How do I get the most compact JSON? => (',', ':')
  What does sort_keys do? => the output of dictionaries will be sorted by key
  Does dumps write comments into the output?
  What is the default encoding of the output bytes?
  What happens to non-ASCII characters if ensure_ascii is true? => such characters are escaped || all such characters are escaped
  What indent level inserts only newlines? => An indent level of 0 will only insert newlines
  What does a circular reference result in if check_circular is false? => RecursionError
  How many decimal places are written for floats?
json.loads
  What is parse_float used for? => will be called with the string of every JSON float
  What is the maximum nesting depth?
  What strings can parse_constant be called with? => -Infinity, Infinity, NaN
  What is the default for parse_int? => equivalent to int(num_str)
  Is json.loads thread-safe?
json
  From which library is json derived? => externally maintained simplejson library
  Which version of JavaScript is JSON a subset of? => ECMA-262 3rd edition
  How do I validate JSON from the shell? => Using json.tool from the shell || python -m json.tool
  Does json support YAML?
pathlib.Path.mkdir
  What does mkdir do? => Create a new directory at this given path
pathlib.Path.rename
  What does rename return? => Returns the new Path instance
pathlib.Path.touch
  What happens if the file does not exist? => if it doesn't exist || Create this file
pathlib.PurePath.with_suffix
  What happens if the given suffix is empty? => If the given suffix is an empty string, remove the suffix
  Does with_suffix rename the file on disk?
subprocess
  What does PIPE mean? => a pipe should be created
  What does check_call raise? => CalledProcessError
subprocess.run
  What happens if the process takes too long? => a TimeoutExpired exception will be raised
  What does run return? => return a CompletedProcess instance
  How do I capture both stdout and stderr? => capture_output=True
  What triggers text mode? => Text mode is triggered by setting
  What is the default timeout?
  Which signal is sent to the process?
subprocess.check_output
  Why is the stdout argument not allowed? => as it is used internally
  How do I capture standard error? => use stderr=STDOUT
  How much output can check_output hold?
os.makedirs
  What is raised if the directory already exists and exist_ok is False? => raise an OSError
  What is the default mode? => mode=0o777
  Who owns the new directory?
os.walk
  What does walk yield? => yields a 3-tuple
  How do I make walk follow symbolic links? => 'followlinks' to true
  What happens to errors from scandir? => are ignored
  In which order are the files sorted?
csv
  Which PEP describes the interface? => PEP 305
  What is the default delimiter? => It defaults to ','
  What does QUOTE_ALL mean? => quotes are always placed around fields
  What is the largest file csv can read?
  What is the default encoding?
functools.lru_cache
  What happens if maxsize is None? => the cache can grow without bound
  What must the arguments be? => must be hashable
  How do I clear the cache? => f.cache_clear()
  How long do entries stay in the cache?
  Is lru_cache thread-safe?
random
  What is the period of the generator? => 2**19937-1
  Why is random() threadsafe? => executes in a single Python step
  What seed is used by default?
random.sample
  Does sample change the original population? => leaving the original population unchanged
  How do I choose from a range of integers? => use range() for the population
  What is raised if k is negative?
tempfile.mkstemp
  What does mkstemp return? => a pair (fd, name)
  Who is responsible for deleting the file? => Caller is responsible
  What happens if 'text' is true? => opened in text mode
  How many temporary files can exist?
tempfile.NamedTemporaryFile
  What is the default mode? => default "w+b"
  What is the default buffering? => (default -1)
  Can the file be deleted on Windows after SIGKILL? => Windows can delete the file
  Is the file encrypted?
tempfile.TemporaryDirectory
  What happens upon exiting the context? => the directory and everything contained in it are removed
heapq
  What does heappop return? => returns the smallest item
  Which indexing is used? => We use 0-based indexing
  How do I transform a list into a heap? => transforms list into a heap
  What is the maximum size of a heap?
heapq.merge
  What does merge assume about its inputs? => already sorted
  What is the time complexity of merge?
statistics
  What does harmonic_mean compute? => Harmonic mean of data
  Which exception does the module define? => StatisticsError is a subclass of ValueError
  Does statistics support complex numbers?
glob.glob
  What does '**' match if recursive is true? => match any files and zero or more directories
  How do I match hidden directories? => include_hidden
  Are the results sorted alphabetically?
fnmatch.fnmatch
  What does ? match? => matches any single character
  Which regular expression flags are used?
urllib.parse.urlsplit
  How many components is a URL parsed into? => 5 components
  Are percent escapes expanded? => escapes are not expanded
  What is the default port?
  Which exception is raised for a bad URL?
logging.basicConfig
  What is the default filemode? => it defaults to 'a'
  What does force do? => any existing handlers attached to the root logger are removed
  In which version was force added? => versionchanged:: 3.8 || Added the ``force`` parameter
  Where does the default handler write? => writes to sys.stderr
  How do I rotate log files every day?
zipfile.ZipFile
  Which modes are allowed? => exclusive create 'x'
  Which compression requires bz2? => ZIP_BZIP2 (requires bz2)
  How do I set a password?
hashlib
  Which hash algorithms are always present? => sha1(), sha224() || md5()
getpass.getpass
  What is the default prompt? => Default: 'Password: '
  When is EOFError raised? => If our input tty or stdin was closed
  How many attempts does the user have?
sched
  What do lower priority numbers mean? => lower priority numbers mean higher priority
  What are events specified by? => Events are specified by tuples
  Who created the sched module?
secrets.token_hex
  How many hex digits is each byte converted to? => two hex digits
  What hash algorithm does token_hex use?
socket.create_connection
  What happens if no timeout is supplied? => getdefaulttimeout
  What must source_address be? => must be a tuple of (host, port)
  What is the default timeout in seconds?
sqlite3.connect
  How do I open a database in RAM? => ":memory:"
  What is the default isolation level?
  What is the default journal mode?
itertools.islice
  What does step default to? => Step defaults to one
  Can islice take negative values?
dataclasses.dataclass
  What happens if frozen is true? => fields may not be assigned to after instance creation
  How do I validate field types?
base64.b64decode
  What is raised if the string is incorrectly padded? => binascii.Error is raised
  What is returned? => returned as a bytes object
  How long may the input be?
uuid
  Which RFC specifies the UUIDs? => RFC 4122
  Why may uuid1 compromise privacy? => may compromise privacy
  How do I make a random UUID? => uuid4() creates a random UUID || make a random UUID
  Does uuid store the identifiers in a database?
uuid.uuid1
  How many bits does the sequence number have? => random 14-bit sequence number
io.open
  What is the default mode? => default mode is 'rt'
  What does buffering 0 do? => Pass 0 to switch buffering off
  Which mode raises FileExistsError? => raises an `FileExistsError`
  What does open return in read binary mode? => it returns a BufferedReader
  How do I lock the file?
  Which permissions does the new file have?
difflib.get_close_matches
  What is the default cutoff? => (default 0.6)
  How are the matches sorted? => sorted by similarity score
  Which language is it written in?
  How many close matches are returned by default? => (default 3)
  What range must cutoff be in? => a float in [0, 1]
queue.Queue.get
  What happens if timeout is a positive number? => raises the Empty exception if no item was available
  How many items can the queue hold?
calendar.monthrange
  What does monthrange return? => Return weekday (0-6
  Which holidays are known?
struct
  What does the character '<' mean? => little-endian
pickle
  Which functions does the module have? => dump(object, file) || dumps(object)
  Is pickle safe against untrusted data?
  What does Unpickler do?
copy
  What does copy.deepcopy make? => make a deep copy of y
  How fast is deepcopy?
  Which two problems exist with deep copy operations? => Two problems often exist with deep copy
  What is the difference between shallow and deep copying? => The difference between shallow and deep copying
  What types are not copied? => This version does not copy types like module
  How much memory does deepcopy use?
argparse
  Which class is the main entry point for command-line parsing? => The main entry point for command-line parsing
  What exception is raised when there are errors with the parser's actions? => The exception raised by ArgumentParser objects
  Which formatter class is the default? => HelpFormatter is the default
  What library inspired argparse? => optparse-inspired
  What does ArgumentDefaultsHelpFormatter do? => adds information about argument defaults
  How are actions typically selected? => selected by passing strings like 'store_true'
  Does argparse read configuration files?
  What exit status does the parser use on errors?
  How do I add shell completion?
argparse.ArgumentParser
  What is the default program name? => os.path.basename(sys.argv[0])
  Which argument controls whether long options can be abbreviated? => allow_abbrev
  How do I put text after the argument descriptions? => epilog
  Which parameter disables the help option? => add_help
  What is the maximum number of arguments?
argparse.FileType
  What values does mode accept? => Accepts the same values as the builtin open() function
  Does FileType close the file automatically?
pathlib.PurePath.relative_to
  Which error is raised if the path is not a subpath of the other? => raise ValueError
pathlib.Path.replace
  Does replace overwrite an existing file? => overwriting if that path exists
  What are relative paths interpreted relative to? => relative to the current working directory
  Does replace work across different drives?
pathlib.Path.unlink
  What should I use to remove a directory? => use rmdir() instead
  Does unlink ask for confirmation?
pathlib.Path.read_text
  What is the default encoding of read_text?
pathlib.Path.resolve
  What does resolve do with symlinks? => resolving all symlinks
pathlib.Path.symlink_to
  How does the order of arguments differ from os.symlink? => is the reverse of os.symlink
pathlib.PurePath
  What does instantiating a PurePath return? => either a PurePosixPath or a PureWindowsPath
  Does PurePath perform filesystem I/O? => don't imply any actual filesystem I/O || without I/O
  How long can a path be?
pathlib.Path.rglob
  In what order are the files yielded?
pathlib.Path.glob
  Does glob yield directories too? => including directories
shutil.unpack_archive
  Where is the archive unpacked if extract_dir is not given? => the current working directory is used
  What is raised if no unpacker is found? => a ValueError is raised
  How do I unpack an encrypted archive?
  Which archive formats can be unpacked? => one of "zip", "tar"
shutil.copystat
  Does copystat change the owner or the group? => owner, and group are unaffected
  What is additionally copied on Linux? => also copies the "extended attributes"
  Which Windows permissions are copied?
shutil.chown
  Can I give a user name instead of a uid? => user/group names
  Does chown work recursively?
shutil.copymode
  What happens when lchmod isn't available? => this method does nothing
shutil.copyfileobj
  How large is the buffer?
shutil.disk_usage
  In which unit are the amounts returned? => in bytes
  What attributes does the result have? => named tuple with attributes 'total', 'used' and 'free'
  How many inodes are free?
subprocess.Popen
  What does preexec_fn do? => to be called in the child process
  How do I set the working directory of the child? => cwd: Sets the current directory
  What happens if shell is true? => the command will be executed through the shell
  What is universal_newlines? => Alias of text
  How much memory may the child use?
  Which attribute holds the exit code? => stdin, stdout, stderr, pid, returncode
subprocess.Popen.communicate
  What does communicate return? => returns a tuple (stdout, stderr)
  What is the maximum size of the output?
subprocess.getstatusoutput
  Is the trailing newline kept? => A trailing newline is stripped
  Which encoding is used to decode the output? => The locale encoding is used
  How do I set a timeout?
subprocess.call
  What does call wait for? => Wait for command to complete or timeout
  What is the default timeout?
json.load
  Which hook has priority if both are defined? => ``object_pairs_hook`` takes priority
  How can I use a custom decoder class? => To use a custom ``JSONDecoder`` subclass || specify it with the ``cls`` kwarg
  Does load close the file?
json.JSONEncoder
  What is None encoded as? => | None | null |
  How do I extend the encoder to other objects? => To extend this to recognize other objects
  How are dates encoded?
json.JSONDecoder
  What is a JSON array decoded to? => | array | list |
  Does the decoder understand NaN? => It also understands ``NaN``
  Does the decoder allow trailing commas?
json.JSONDecoder.raw_decode
  What does raw_decode return? => a 2-tuple of the Python representation
  When is raw_decode useful? => have extraneous data at the end
textwrap.fill
  How does fill treat tabs? => tabs are expanded
  Can fill justify text on both sides?
random.shuffle
  Does shuffle return a new list? => in place, and return None
random.choices
  What happens if the relative weights are not specified? => selections are made with equal probability
  What does choices return? => Return a k sized list
  What is the default seed?
random.randint
  Are both end points included? => including both end points
random.gauss
  Is gauss thread-safe? => Not thread-safe without a lock
  What is the default standard deviation?
string.capwords
  What is the separator used for? => used to split and join
  Does capwords handle hyphenated names?
queue.Queue.put
  What happens if block is true and timeout is None? => block if necessary until a free slot
  Which exception is raised if no free slot is available? => raises the Full exception
  What is the maximum length of the queue?
queue.Queue.join
  When does the count of unfinished tasks go up? => goes up whenever an item is added
queue.Queue.task_done
  What is raised if it is called too many times? => Raises a ValueError
bisect.bisect_right
  Where is x inserted if it already appears in the list? => just after the rightmost x
  What does lo default to? => lo (default 0)
  What is the time complexity?
bisect.insort_right
  Which side is x inserted on if it is already in a? => insert it to the right of the rightmost x
heapq.nlargest
  What is nlargest equivalent to? => Equivalent to: sorted(
  Is the result stable?
heapq.heapify
  How long does heapify take? => in O(len(heap)) time
functools.reduce
  What is initial used for? => placed before the items
  Does reduce run in parallel?
functools.wraps
  Which attributes are copied by default?
functools.partial
  What does partial create? => New function with partial application
functools.singledispatch
  What does singledispatch transform a function into? => into a generic function
  How many arguments may a generic function dispatch on?
contextlib.suppress
  What happens after the exception is suppressed? => execution proceeds with the next statement following the with statement
  Does suppress log the exception?
contextlib.ExitStack
  What does ExitStack manage? => dynamic management of a stack of exit callbacks
contextlib.redirect_stdout
  How do I send help() to stderr? => How to send help() to stderr
contextlib.closing
  What does closing do at the end of a block? => automatically close something at the end
shlex.quote
  What does quote return? => Return a shell-escaped version of the string
  Does quote work on Windows?
difflib
  What does ndiff return? => Return a delta: the difference between
difflib.SequenceMatcher
  When does ratio return 1.0?
  Who developed the gestalt pattern matching algorithm? => Ratcliff and Obershelp
  What is the basic idea of the algorithm? => find the longest contiguous matching subsequence
  What is considered a close match? => over 0.6 means
difflib.unified_diff
  How many lines of context are there by default? => defaults to three
  When should lineterm be set to an empty string? => For inputs that do not have trailing newlines
  Does unified_diff color its output?
configparser
  How are values interpolated?
  Which section provides the default values? => DEFAULTSECT || `default_section`
  What happens if strict is True? => parser won't allow for any section or option duplicates
  Which delimiters divide keys from values? => strings that divide keys from values
  How do I encrypt a value?
  Does configparser support TOML?
  What is the default of allow_no_value? => When `allow_no_value` is True (default: False)
tempfile.mkdtemp
  Who can search the directory? => readable, writable, and searchable only by the creating user
  When is the directory deleted? => Caller is responsible for deleting the directory
  What quota applies to the directory?
tempfile.SpooledTemporaryFile
  When does the file switch to disk? => when it exceeds a certain size
glob.iglob
  What does iglob return? => Return an iterator which yields the paths
fnmatch.translate
  Can metacharacters be quoted? => no way to quote meta-characters
fnmatch.filter
  What does filter construct? => Construct a list from those elements
os.scandir
  What does scandir return? => Return an iterator of DirEntry objects
os.listdir
  Which order is the list in? => The list is in arbitrary order
  Does the list include '.' and '..'? => does not include the special
  How many entries can be listed?
os.rename
  What do src_dir_fd and dst_dir_fd do? => If either src_dir_fd or dst_dir_fd is not None
os.replace
  Does replace overwrite the destination? => overwriting the destination
os.urandom
  What are the bytes suitable for? => suitable for cryptographic use
  What algorithm generates the bytes?
os.get_exec_path
  What must env be? => must be an environment variable dict or None
os.popen
  Which encoding does popen use?
os.fwalk
  How does fwalk differ from walk? => yields a 4-tuple
time.sleep
  How long does sleep delay? => Delay execution for a given number of seconds
  Can sleep be interrupted by a signal?
time.monotonic
  Can the clock go backward? => cannot go backward
time.strftime
  What does %H mean? => Hour (24-hour clock)
  Which time is used when the time tuple is not present? => current time as returned by localtime() is used
datetime.datetime.isoformat
  What separates date and time by default? => default 'T' || sep is used to separate
decimal
  What precision is used by default?
fractions
  What does this module provide? => infinite-precision, rational numbers || rational
threading.Event
  What is the initial value of the flag? => The flag is initially false
  How many threads can wait?
threading.Timer
  What does Timer do? => Call a function after a specified number of seconds
threading.Barrier
  What is a barrier useful for? => synchronizing a fixed number of threads || at known synchronization points
threading.Thread.join
  What must I call to decide whether a timeout happened? => you must call is_alive()
  Can a thread be joined many times? => A thread can be join()ed many times
  When does join raise a RuntimeError? => raises a RuntimeError if an attempt is made to join the current thread
  How do I kill a thread?
threading.Thread.start
  How often may start be called? => at most once per thread object
urllib.request.urlopen
  What does timeout specify? => specifies a timeout in seconds
  What must data be? => must be an object specifying additional data
  How many redirects are followed?
http.client.HTTPConnection
  What is the default port?
html.escape
  Which characters are replaced? => Replace special characters
  When are quotation marks also translated? => If the optional flag quote is true
html.unescape
  Which standard's rules are used? => HTML 5 standard
zlib.compress
  What is the compression level range?
gzip.open
  What modes are allowed for binary mode? => "rb", "r", "wb"
  What is the default mode? => default "rb" || is "rb" || "rb", and the default
  What is the default compresslevel? => default compresslevel is 9
  Does gzip encrypt the data?
tarfile
  What does the module do? => Read from and write to tar format archives
asyncio.gather
  What happens if return_exceptions is True? => exceptions in the tasks are treated the same as successful results
  How are the results ordered? => same order as the original sequence
  What happens if the outer Future is cancelled? => all children (that have not completed yet) are also cancelled
  How many coroutines can be gathered?
asyncio.wait_for
  What is raised when a timeout occurs? => raises TimeoutError
asyncio.run
  When should asyncio.run be used? => main entry point for asyncio programs || should ideally only be called once
  What happens if debug is True? => run in debug mode
  Which CPU does it run on?
"""
"""A documented object, then its questions, each with a part of the right quote; without one there is no answer."""


def documentation(name: str) -> str:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return inspect.getdoc(found) or ""
    raise LookupError(name)


def questions() -> list[tuple[str, str, tuple[str, ...]]]:
    found = []
    name = ""
    for line in QUESTIONS.strip().splitlines():
        if not line.startswith(" "):
            name = line
            continue
        question, _, answer = line.strip().partition(" => ")
        found.append((name, question, tuple(answer.split(" || ")) if answer else ()))
    return found


@pytest.mark.parametrize("ref", ["", "text"], ids=["named", "unnamed"])
def test_answerable_questions_are_answered_and_the_others_abstained(ref: str) -> None:
    """`named`: the input is called as the object is. A name that says nothing costs some answers."""
    right = wrong = abstained = made_up = 0
    for name, question, answers in questions():
        text = documentation(name)
        folded = " ".join(text.split())
        if answers and not any(answer in folded for answer in answers):
            continue  # another Python version says it in other words
        quotes = best(question, [Source(kind="input", ref=ref or name, text=text)])
        assert all(quote.text in folded for quote in quotes)
        if answers:
            right += bool(quotes) and any(answer in quotes[0].text for answer in answers)
            wrong += not quotes or not any(answer in quotes[0].text for answer in answers)
        else:
            abstained += not quotes
            made_up += bool(quotes)
    assert right + wrong > 180 and abstained + made_up > 90
    assert right / (right + wrong) >= (0.80 if ref else 0.85)
    assert abstained / (abstained + made_up) >= 0.90
