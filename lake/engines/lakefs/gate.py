"""The release gate that runs inside a lakeFS server, as an action on what moves `main`.

It is the second lock: lakeFS reads actions from the *source* commit, so a branch without the file, or with another
one, merges unchecked. The first lock is the client (`lake.admission`), which refuses such a source before it asks.

The merge must carry the metadata

- `release`: the release's name,
- `qc`: commit Q, the tree that was judged,
- `expect_dest`: the head of main that Q was judged against,

and the source must hold `_qc/<Q>.json` with `commit` = Q, `dest` = that head and `status` `pass` or `waived`. Between Q
and the source only `_qc/` and `_releases/<release>/` may differ, and main may hold nothing that the source lacks: so
main becomes the tree that was judged. What changes gate or policy may change nothing else. In a pre-merge action the
first parent of the commit to be is the head that the server is about to replace, under its own compare-and-set;
comparing `expect_dest` with it closes the race of two publishers. The second parent is the commit that is merged: the
name of a branch would show what is staged on it and not merged. A squash merge has no second parent.

`lake.admission` says the same in the same words, rule by rule and in this order; a test holds them together.

Protection leaves two more ways onto main, which no release needs: a cherry-pick, and an import (which the server treats
as a commit). Both are refused. For these the server reads the action from main itself, so nothing that is picked or
imported can bring another one; a revert stays free, since it is how a release is undone.
"""

GATE_KEY = "_lakefs_actions/release_gate.yaml"
# What the server's log of its actions calls them.
ACTION, HOOK = "release gate", "judged"
NO_RELEASE = "this merge is not a release: use `emlake release publish`"
ONLY_RELEASES = "main takes releases and their undoing, nothing else: use `emlake release publish`"
SQUASHED = "a squash merge is not a release"

# `diff_refs` is three-dot: "what did the right side change since both were one". So equality of two lines takes both
# directions. The server's Lua has no string.match; its regexp module has Go's syntax.
_GATE = r"""# Installed by `emlake init`; the rule is told in lake/engines/lakefs/gate.py.
name: release gate
description: main only moves to a tree that was judged
on:
  pre-merge:
    branches:
      - main
  pre-cherry-pick:
    branches:
      - main
  pre-commit:
    branches:
      - main
hooks:
  - id: judged
    type: lua
    properties:
      script: |
        local hook = require("hook")
        local json = require("encoding/json")
        local lakefs = require("lakefs")
        local regexp = require("regexp")

        local repository = action.repository_id
        local head = action.commit.parents[1]
        local source = action.commit.parents[2]
        local request = action.commit.metadata or {}

        local function demand(holds, reason)
          if not holds then
            hook.fail(reason)
          end
        end

        -- The commit that lays down the gate: what is staged counts already when the server reads actions for it.
        local function sets_up()
          return action.event_type == "pre-commit"
            and lakefs.get_object(repository, head, "_lakefs_actions/release_gate.yaml") == 404
        end

        local function check_request()
          demand(source, "a squash merge is not a release")
          demand(request.release and request.qc and request.expect_dest,
            "this merge is not a release: use `emlake release publish`")
          demand(regexp.match("^[A-Za-z0-9][A-Za-z0-9_-]*$", request.release),
            "the release name is not valid: " .. request.release)
          demand(regexp.match("^[0-9a-f]{64}$", request.qc),
            "qc is not a full commit id: " .. request.qc)
          demand(request.expect_dest == head,
            "main has moved: it is at " .. tostring(head) .. ", not at " .. request.expect_dest)
        end

        local function told(value)
          return type(value) == "string" and value or "not told"
        end

        local function check_verdict()
          local code, text = lakefs.get_object(repository, source, "_qc/" .. request.qc .. ".json")
          demand(code == 200, "there is no QC verdict on " .. request.qc)
          local readable, verdict = pcall(json.unmarshal, text)
          demand(readable and type(verdict) == "table", "the QC verdict is not a JSON object")
          demand(verdict.status == "pass" or verdict.status == "waived",
            "the QC verdict is " .. told(verdict.status))
          demand(verdict.commit == request.qc, "the QC verdict is on commit " .. told(verdict.commit))
          demand(verdict.dest == head, "the QC verdict was reached against " .. told(verdict.dest))
        end

        local function within(path, folders)
          for _, folder in ipairs(folders) do
            if string.sub(path, 1, #folder) == folder then
              return true
            end
          end
          return false
        end

        local function each_change(left, right, prefix, reason, look)
          local after, more = "", true
          while more do
            local code, page = lakefs.diff_refs(repository, left, right, after, prefix)
            demand(code ~= 404, reason .. "there is no commit " .. request.qc)
            demand(code == 200, reason .. "diff failed (" .. tostring(code) .. ")")
            for _, change in pairs(page.results) do
              if type(change) == "table" then
                look(change.path)
              end
            end
            after, more = page.pagination.next_offset, page.pagination.has_more
          end
        end

        local function check_changes(left, right, folders, reason)
          each_change(left, right, "", reason, function(path)
            demand(within(path, folders), reason .. path)
          end)
        end

        local function check_rules()
          local rules = false
          for _, place in ipairs({"_lakefs_actions/", "_policy/release.toml"}) do
            each_change(head, source, place, "", function(path)
              rules = true
            end)
          end
          if rules then
            check_changes(head, source, {"_lakefs_actions/", "_policy/", "tables/qc_metrics/", "tables/qc_results/",
              "_qc/", "_releases/" .. request.release .. "/"}, "gate or policy change together with ")
          end
        end

        if sets_up() then
          return
        end
        demand(action.event_type == "pre-merge",
          "main takes releases and their undoing, nothing else: use `emlake release publish`")
        check_request()
        check_verdict()
        local allowed = {"_qc/", "_releases/" .. request.release .. "/"}
        check_changes(request.qc, source, allowed, "changed after QC: ")
        check_changes(source, request.qc, {}, "QC judged another line of work, with ")
        check_changes(source, head, {}, "main holds what the candidate lacks: ")
        check_rules()
"""


def gate_yaml() -> bytes:
    """Give the action file, as it must lie at `GATE_KEY` on main and on every candidate."""
    return _GATE.encode()
