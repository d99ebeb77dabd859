"""What technical English says in other words: near-synonyms, and phrases that stand for one word.

General on purpose: it holds what manuals of any program say, nothing that one of them calls its own. A word
stands in as many groups as it has senses, and groups do not chain.
"""

from __future__ import annotations

import functools
import re

from aiosd.models.extractive.words import listed, stem

_GROUPS = """
remove delete drop strip discard erase eliminate omit exclude clear destroy purge prune trim cut unlink;
create make build construct generate produce form new; add append insert attach include put prepend; change
modify alter update edit adjust adapt affect convert; replace substitute swap overwrite exchange; copy
duplicate clone replicate; move rename relocate transfer; return yield give result output produce answer;
raise throw error exception exc fail failure problem wrong trouble; ignore skip silence suppress disregard
swallow; catch handle intercept; handle treat process regard consider; stop end finish terminate quit exit
halt cease; abort cancel interrupt kill; finish complete done; start begin initial launch open; run execute
invoke call launch spawn perform; wait block pause sleep delay suspend hang; continue proceed resume; read
load fetch; fetch get obtain retrieve access receive acquire; write save store dump emit output record; keep
preserve retain maintain save remain stay; remember keep store memorize; convert transform translate turn
encode coerce cast; encode serialize dump; decode deserialize parse load; parse analyze interpret; split
divide separate break partition; separator delimiter sep divider; join merge combine concatenate together
unite; find search locate look discover seek detect; match fit conform correspond satisfy meet; check test
verify validate examine inspect; determine decide whether establish; compare difference differ contrast;
choose pick select choice prefer; order sort arrange alphabetical ascending rank; order sequence
arrangement; count number amount quantity total many; allow permit enable let accept; prevent avoid forbid
disallow prohibit protect block; refuse reject deny; turn disable deactivate off; enable activate on; need
require must mandatory necessary obligatory; specify set configure define pass provide supply assign;
control govern influence regulate determine; show display print present view; hide hidden conceal invisible;
describe explain document; expand extend grow increase enlarge; reduce shrink decrease shorten truncate
abbreviate cut; collapse fold compress squeeze; limit restrict bound cap constrain; ensure guarantee assure
always; follow traverse descend recurse visit iterate; iterate loop walk traverse; inherit derive subclass
base; override redefine customize; use employ utilize apply; contain include hold consist comprise compose;
happen occur; try attempt; expire timeout elapse; own belong; mean denote signify represent stand indicate;
whole entire full complete all; quote escape; reason why because due cause; compute calculate evaluate;
measure benchmark time; ask prompt request query; send transmit deliver submit post; listen bind serve;
connect link attach; install setup deploy; begin first initial leading; last final end trailing; next
following subsequent after; previous earlier preceding before prior; directory dir folder; file document;
path location place where; name call title label identifier; program command cmd executable application app
utility; process child subprocess; service daemon server; argument arg parameter param option flag keyword
setting switch; attribute attr property field; value content; type kind sort category class; text string
str; string str characters; character char letter symbol; number num integer int numeric; float decimal
real; list array sequence; dictionary dict mapping map; tuple pair; element item member entry component;
line row; column width; wide width; whitespace space blank indentation indent; indent indentation leading;
blank empty; nothing none null empty; prefix leading beginning; suffix trailing ending extension; extension
suffix type; length len size long large big; large big huge great; small little short tiny; size space
bytes; default otherwise unless unspecified omit normally standard; automatic itself implicit; explicit
manual; user person people account; permission permit mode access right privilege; code status exit; status
state; stream pipe; link symlink symbolic; archive zip tar; time date moment; hour h; second sec s;
millisecond ms; kilobyte kb kib; megabyte mb mib; gigabyte gb gib; environment env; platform system os;
terminal console screen window tty; password secret passphrase; random arbitrary; temporary temp tmp; module
library lib package; function func method callable routine procedure; object obj instance; parent base
superclass; root top; source src origin original; destination dest dst target; message msg; data information
contents; example sample; equal same identical equivalent; similar like resemble; opposite reverse inverse;
duplicate repeat; unique distinct different; maximum max largest most highest greatest upper longest biggest
limit; minimum min smallest least lowest lower shortest fewest; compact small short dense; fast quick
efficient speed performance; slow expensive; safe secure; recursive nest subdirectory tree; simultaneous
concurrent parallel; valid legal correct; invalid illegal malformed bad incorrect; miss absent nonexistent
lack; exist present available; success succeed successful; fallback alternative instead; pretty human
readable; wildcard pattern glob; pattern expression regex regular; part portion piece subset chunk segment;
free available unused; use occupy take; encoding charset codec; uppercase capital upper; lowercase lower;
hyphen dash; slash separator; config configuration setting preference; doc documentation manual; license
licence; cost price fee; version edition release; supply provide offer give; support handle accept
understand; certain particular specific given; several multiple many; once single; permanent durable
persistent; backup copy; log record; rate frequency; network connection; share common shared; common general
usual; rule policy; close shut; group bundle; surround enclose wrap; wrap fold break; visible show; edge
margin border; position index offset location; depth level; nest depth level; keep hold; lose loss;
unchanged unaffected untouched intact; relative compare; absolute full; inclusive include; twice two double;
half middle; average mean; probability chance likelihood; weight importance; event notification; callback
hook handler; lock mutex; queue waiting pending; retry again repeat; loop cycle circular; ascii english;
unicode international; percent percentage; escape special; strict rigid; warn warning alert; obsolete
deprecated old; modern new recent; purpose goal aim use; advantage benefit; drawback disadvantage caveat;
responsible responsibility duty; interactive user; quiet silent; verbose detailed; imitate mimic emulate
resemble; instruct tell ask; recommend advise suggest should; clean delete tidy; disappear remove delete
vanish; hang block wait freeze stuck long timeout; room space slot capacity full; feed pass give input
supply send; assume default presume; disk drive filesystem device storage; enter follow descend recurse;
twice times multiple repeat; already beforehand before; altered unchanged modify; children child descendant
sub; subdirectory subfolder child; dotfile hidden dot; unlimited bound limit infinite; empty clear reset;
statistics hit count; nobody none omit; plug custom specify; forget discard drop; emit send output raise;
tell inform notify report; report result output print error; complain raise warn error; crash raise
exception error; succeed zero success; nonzero fail error; missing exist absent none found; reach exceed
arrive; exceed limit over; outside beyond; inside within under; below under less; above over more; guess
default assume infer automatic; infer detect guess; own custom user self; customize override subclass
custom; tweak custom adjust; plugin hook; shell terminal command; exclude ignore skip omit; include contain
also; spot position place location; rightmost right after; leftmost left before; bottom last end lowest; top
first start highest; backward reverse; extra additional optional; additional also extra; optional omit may;
further more additional; rest other remaining; remaining rest left; single one individual; pair two tuple;
triple three tuple; trio three triple; most majority; nest indent level deep; shorthand abbreviate alias;
alias synonym another name; abbreviate short prefix; decimal float number; whole integer; fraction float;
sign negative positive; negative minus below; positive plus greater non-negative; money cost price; crypt
encrypt cipher; secure cryptographic safe; hash digest checksum; unsafe insecure danger; dangerous unsafe
caution warning; caution warning note; thread concurrent threadsafe; machine host computer system; host
machine server address; web http internet; mail email message; trash delete; owner user uid; access open
permission read; readable permission open; lock exclusive; rotate switch rollover; round truncate; middle
median centre center; average mean typical; typical usual common; frequent common most; nearest closest
near; close near similar; similar close match; resemblance similarity ratio; score ratio similarity;
percentage ratio fraction; threshold cutoff limit; cutoff threshold minimum; accent ascii unicode non-ascii;
letter character alphabet; quote quotation quoting; apostrophe quote; bracket parenthesis brace; comma
separator; colon separator; tab whitespace; newline linebreak line; paragraph text block; heading title;
title heading name; epilog end after footer; intro description beginning; overview description summary;
usage help synopsis; help usage documentation; hint help note
"""
_PHRASES = (
    (
        r"(?:g[ei]ve|gave|given|giving|hand|come|came|get|got|gotten|send|sent|pass)(?:s|ed|ing)?(?: \w+)? back",
        "return",
    ),
    (r"(?:get|getting|got) rid of", "remove"),
    (r"(?:throw|threw|thrown)(?: \w+)? away", "discard"),
    (r"(?:turn|switch)(?:ed|ing)?(?: \w+)? off", "disable"),
    (r"(?:turn|switch)(?:ed|ing)?(?: \w+)? on", "enable"),
    (r"(?:go|goes|going|went|gone) wrong", "fail"),
    (r"(?:go|goes|going|carr(?:y|ies|ied|ying)|keeps?) on(?: with)?", "continue"),
    (r"(?:come|comes|came) out", "output"),
    (r"(?:find|finds|found|figure|figured) out", "determine"),
    (r"(?:work|works|worked) out", "compute"),
    (r"look(?:s|ed|ing)? (?:up|for)", "search"),
    (r"look(?:s|ed|ing)? into", "enter"),
    (r"ma[kd]es? sure", "ensure"),
    (r"carr(?:y|ies|ied) out", "execute"),
    (r"set(?:s|ting)? up", "configure"),
    (r"clean(?:s|ed|ing)? up", "delete"),
    (r"stands? for", "mean"),
    (r"(?:leave|leaves|left|leaving)(?: \w+)? out", "exclude"),
    (r"(?:leave|leaves|left)(?: \w+)? (?:alone|untouched|as (?:it|they) (?:is|are))", "unchanged"),
    (r"filter(?:s|ed)? out", "exclude"),
    (r"cut(?:s|ting)? (?:off|short)", "truncate"),
    (r"shut(?:s|ting)? down", "stop"),
    (r"puts? together", "join"),
    (r"(?:based|built|modelled) on", "derive"),
    (r"(?:deal|deals|dealt|cope|copes) with", "handle"),
    (r"takes? care of", "handle"),
    (r"f(?:a|e)lls? back", "fallback"),
    (r"go(?:es)? through", "iterate"),
    (r"(?:by itself|on its own|all alone)", "automatic"),
    (r"by hand", "manual"),
    (r"at the same time", "simultaneous"),
    (r"(?:at most|no more than|not more than)", "maximum"),
    (r"(?:at least|no less than|not less than)", "minimum"),
    (r"(?:too long|long running)", "timeout"),
    (r"(?:in place of|rather than)", "instead"),
    (r"(?:is|are|was|were)(?:n't| not) (?:given|specified|passed|supplied|set)", "omit"),
    (
        r"(?:cannot|can't|could not|couldn't) be found|(?:is|are)(?:n't| not) (?:there|found)|do(?:es)?n't exist",
        "missing",
    ),
    (r"(?:g[ai]ve|given)(?:s)? up", "stop"),
    (r"ends? up", "result"),
    (r"operating systems?", "platform"),
    (r"symbolic(?:al)? link(?=s?\b)", "symlink"),
    (r"home ?page", "homepage"),
    (r"(?:is|are) already there", "exists"),
    (r"line breaks?", "newline"),
    (r"full stops?", "sentence-ending punctuation"),
    (r"more than once", "twice"),
)
"""Phrasal verbs and the like, with the one word that manuals say instead."""


@functools.cache
def _near() -> dict[str, frozenset[str]]:
    near: dict[str, set[str]] = {}
    for group in _GROUPS.split(";"):
        stems = {stem(word) for word in listed(group)}
        for one in stems:
            near.setdefault(one, set()).update(stems - {one})
    return {one: frozenset(others) for one, others in near.items()}


def alike(stem: str) -> frozenset[str]:
    """Stems that technical English puts in the place of another."""
    return _near().get(stem, frozenset())


@functools.cache
def _phrases() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), word) for pattern, word in _PHRASES)


def plain(question: str) -> str:
    """A question with its phrasal verbs said in one word."""
    for pattern, word in _phrases():
        question = pattern.sub(word, question)
    return question
