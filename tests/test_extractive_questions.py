"""Development questions over the standard library's documentation, and the rates that quoting.py was set on.

The figures that count are held elsewhere, on questions that were written blind. These keep a change from trading
one rate for the other without noticing.
"""

from __future__ import annotations

import importlib
import inspect

import pytest

from aiosd.models.extractive.quoting import best
from aiosd.records import Source

QUESTIONS = """
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
json.dumps
  What happens to non-ASCII characters if ensure_ascii is true? => such characters are escaped || all such characters are escaped
  What indent level inserts only newlines? => An indent level of 0 will only insert newlines
  What does a circular reference result in if check_circular is false? => RecursionError
  How many decimal places are written for floats?
json.loads
  What strings can parse_constant be called with? => -Infinity, Infinity, NaN
  What is the default for parse_int? => equivalent to int(num_str)
  Is json.loads thread-safe?
json.JSONDecoder.raw_decode
  What does raw_decode return? => a 2-tuple of the Python representation
  When is raw_decode useful? => have extraneous data at the end
textwrap.fill
  How does fill treat tabs? => tabs are expanded
  Can fill justify text on both sides?
textwrap.TextWrapper
  What happens to long words if break_long_words is false? => those words will not be broken
  Which two methods make up the public interface? => consists of the wrap() and fill() methods
  Why is fix_sentence_endings off by default? => (unavoidably) imperfect
  What is the default placeholder? => placeholder (default: ' [...]')
  Does initial_indent count towards the width? => Counts towards the line's width
  Which hyphenation dictionary is used?
  How does TextWrapper handle HTML tags?
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
copy
  What does copy.deepcopy make? => make a deep copy of y
  How fast is deepcopy?
statistics.quantiles
  What value of n gives deciles? => Set *n* to 10 for deciles
  How many cut points are returned? => list of (n - 1) cut points
  How are cut points interpolated? => linearly interpolated
  What happens when method is inclusive? => is treated as population
  Which exception is raised for n smaller than one?
statistics.mode
  What is returned if several modes have the same frequency? => return the first one
  Which exception is raised for empty data? => raises StatisticsError
  Does mode ignore missing values such as NaN?
statistics.median_grouped
  What must the caller make sure of? => The caller is responsible
  How many values must be present? => At least one value must be present
  What does interval mean? => *interval* is width of each bin
collections.ChainMap
  Where are the underlying mappings stored? => stored in a list
  Which mapping do writes affect? => only operate on the first
  How do lookups work? => Lookups search the underlying mappings successively
  Is ChainMap safe to share between threads?
collections.defaultdict
  When is the default factory called? => called without arguments to produce
  How is the dictionary sorted?
getopt.getopt
  How are options that require an argument marked? => followed by a colon || followed by an equal sign
  What does the return value consist of? => The return value consists of two elements
  May long and short options be mixed? => may be mixed
  Should the leading '--' be included in the option name? => should not be included
  How are subcommands parsed?
timeit
  What is the default number of repeats? => (default 5)
  Which option sets the output time unit? => -u/--unit
  How is the number of loops calculated if -n is not given? => If -n is not given
  What does -p do? => use time.process_time()
  Who published the Python Cookbook? => published by O'Reilly
  Which option writes the results to a file?
  How much memory does the timer measure?
pprint.pprint
  Where is the object printed by default? => default is sys.stdout
  What is the default width?
traceback.print_exception
  What is printed for a SyntaxError? => is SyntaxError and value has
  What is the default limit?
inspect.getsource
  What is raised if the source code cannot be retrieved? => OSError is raised
  What may the argument be? => The argument may be a module
  Does getsource work for C extensions?
logging.handlers.RotatingFileHandler
  When does it switch to the next file? => reaches a certain size
  How are rotated files compressed?
logging.handlers.TimedRotatingFileHandler
  Which files are deleted if backupCount is positive? => oldest ones are deleted
  At what hour does the rollover happen?
smtplib.SMTP.sendmail
  What does the method return? => It returns a dictionary
  Which exception is raised if all recipients were rejected? => SMTPRecipientsRefused
  How is a string encoded to bytes? => using the ascii codec
  What happens if EHLO fails? => HELO will be tried
  Is the connection open after an exception? => connection will be open even after
  What is the maximum attachment size?
  Which port is used for TLS?
socketserver
  Which class do I derive from to implement a service? => must derive a class from BaseRequestHandler
  Why must the mix-in class come first? => since it overrides a method
  What is the difference between an IP and a Unix stream server? => the only difference between an IP and a Unix
  How many classes are in the inheritance diagram? => There are five classes
  How do I serve HTTPS?
  What is the default connection timeout?
zipfile.ZipFile.extract
  Where is the member extracted to? => to the current working directory
  What may member be? => may be a filename or a ZipInfo
  How do I extract an encrypted member?
shutil.copy
  What happens if source and destination are the same file? => SameFileError
  Which GNU command does it resemble without following symlinks? => cp -P src dst
  Does copy preserve timestamps?
subprocess.check_call
  What is raised if the exit code is not zero? => otherwise raise CalledProcessError
  Where is the return code stored? => return code in the returncode attribute
  How do I kill the command?
platform.platform
  What does setting terse to true do? => Setting terse to true
  Is the output machine parseable? => human readable rather than machine parseable
  Which CPU does the machine have?
webbrowser.open
  What does new=2 mean? => - 2: a new browser page
  Which browser is used? => using the default browser
  What does autoraise do? => autoraise raises the window
  Which cookies are sent?
dataclasses.field
  What is default_factory? => 0-argument function called to initialize
  May I specify both default and default_factory? => It is an error to specify both
  What must metadata be? => must be a mapping
  How do I make a field private?
optparse.OptionParser
  What is %prog expanded to? => "%prog" will be expanded to the name of
  What does prog mean? => the name of the current program
  What does epilog contain? => paragraph of help text to print after option help
  What is the default of allow_interspersed_args? => allow_interspersed_args : bool = true
  What does rargs hold? => the argument list currently being parsed
  How do I translate the help into German?
cmd
  What does typing an empty line do? => repeats the last command
  What is '!' a synonym for? => is a synonym for `shell'
  Which character draws separator lines? => sets the character used to draw separator lines
  How is end of file processed? => End of file on input is processed
  What is printed on interpreter startup? => printed out on interpreter startup
  How many commands are kept in the history?
  Does cmd support colored output?
re
  What does '$' match? => Matches the end of the string or just before
  What does '.' match? => Matches any character except a newline
  What does greedy mean? => Greedy means that it will match
  Which language's matching operations are similar? => found in Perl
  What is the maximum pattern length?
  How do I run a match on the GPU?
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
    assert right + wrong > 150 and abstained + made_up > 75
    assert right / (right + wrong) >= (0.80 if ref else 0.85)
    assert abstained / (abstained + made_up) >= (0.85 if ref else 0.90)
